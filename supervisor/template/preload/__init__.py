"""Preloading: what the template imports before it forks, and the checks that workers can still be forked afterwards."""
