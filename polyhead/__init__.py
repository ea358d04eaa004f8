"""polyhead: one frozen vision encoder, one pass per picture, many heads. The names that users import."""
