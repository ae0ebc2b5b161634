"""Analysis of models: cost, similarity of layers, benchmarks and studies."""
