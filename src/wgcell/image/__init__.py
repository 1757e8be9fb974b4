"""The guest's image: ``build`` makes it from Debian packages, ``store`` keeps it and finds it
whole."""
