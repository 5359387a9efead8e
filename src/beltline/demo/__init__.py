"""`beltline demo`: photos through a line of three stages, with a live picture."""
