"""From advantages to a gradient, in runs that survive."""
