"""Being written by another founder right now: leave it."""
