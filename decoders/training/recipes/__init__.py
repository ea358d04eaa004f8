"""How each kind of head is trained: what it learns from, with which loss, for how long."""
