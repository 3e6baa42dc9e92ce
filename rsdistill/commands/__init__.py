"""Commands: one file each, one public function on named files."""
