"""The commands of ``attncache``, a file each: their options, and what they answer. ``attncache.cli`` runs them."""
