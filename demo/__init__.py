"""`--mode=demo`: a page in the browser that draws by the same functions as the command line."""
