package import BlockIO
