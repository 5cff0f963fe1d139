"""Pure modules, by property; no process, no model, no sleep."""
