"""What `make docs` needs: the pages and pictures that a program writes, and the hooks of mkdocs.yml."""
