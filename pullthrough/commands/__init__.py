"""What the operator's commands have in common with nothing else: see cli.py for all of them."""
