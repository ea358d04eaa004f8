"""Making an encoder of our own, `polyhead-tiny`, by distilling a teacher into it on unlabelled pictures."""
