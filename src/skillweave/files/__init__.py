"""Write files so that a crash loses nothing, read them so that a stranger's file can do no harm, and hash them."""
