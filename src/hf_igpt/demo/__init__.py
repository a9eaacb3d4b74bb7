"""The demo: what a browser sees of a checkpoint. `hf-igpt demo` and `app/` start it."""
