"""The playground: pages in the browser on which people try the packs of a server. It needs the extra `ui`."""
