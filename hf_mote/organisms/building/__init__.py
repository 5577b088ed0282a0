"""How the organisms are made."""
