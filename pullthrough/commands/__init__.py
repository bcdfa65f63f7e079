"""The operator's commands on a store, and what it is connected to; cli.py lists them all."""
