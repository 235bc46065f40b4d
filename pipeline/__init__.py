"""The host side of Edgeship: a recipe in, verified and measured artifacts out."""
