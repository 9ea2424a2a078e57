"""Pictures and captions: prepared folders, their manifest, caches of what encoders make of them."""
