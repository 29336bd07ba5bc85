"""The machine model: clusters, what an operation costs on them, and how a schedule plays out."""
