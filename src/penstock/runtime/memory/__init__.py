"""What a forward keeps, and where: recomputed, or on another rank."""
