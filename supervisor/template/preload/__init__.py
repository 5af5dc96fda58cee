"""What the template imports before it forks, and how that is judged."""
