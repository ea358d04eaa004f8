"""Training and scoring heads on frozen features; nothing here runs while serving."""
