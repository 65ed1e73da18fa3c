"""A source folder and a recipe → a shard folder: examine, group, split, write; and the check of the result."""
