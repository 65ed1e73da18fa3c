"""What the commands of this folder share: child processes, network namespaces, contestants, known copies."""
