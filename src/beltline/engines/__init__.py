"""Floor 1: the only code that talks to a store. Engines never import each other."""
