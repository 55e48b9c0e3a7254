"""Ways out of this project and into it: models in formats that others read and publish."""
