"""From a scene and a network to strips of labels, in memory that grows with the scene's width and never with its height."""
