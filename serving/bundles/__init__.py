"""Bundle files: their keys, what loading makes of them, and checks without the weights."""
