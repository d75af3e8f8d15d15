//! Bridges, addresses, published ports: the network data path.
