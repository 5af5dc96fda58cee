"""The supervisor's side of the template process."""
