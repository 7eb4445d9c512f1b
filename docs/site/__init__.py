"""The site: pages for the browser, from docs/, the schema and the docstrings.

python -m docs.site        # writes build/site/html
"""
