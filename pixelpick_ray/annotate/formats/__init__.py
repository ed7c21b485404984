"""The exchange formats, a module each; `exchange.py` chooses."""
