"""Pictures of graphs and timelines, for people."""
