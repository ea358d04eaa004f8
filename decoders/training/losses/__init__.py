"""The losses, one a file, and how queries are matched with objects before most of them can be computed."""
