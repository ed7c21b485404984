"""Exchange formats, one module each; `exchange.py` selects one."""
