"""Where examples come from: files, streams, BBC News, texts for language modeling."""
