"""Where the demo's model comes from: seeded scripts that draw shapes, train on them, and measure what is drawn.

python -m hotshelf.demo.training.train --out MODEL
python -m hotshelf.demo.training.train_loras --model MODEL --out LORAS
python -m hotshelf.demo.training.measure --model MODEL --loras LORAS/blueprint.safetensors LORAS/pink.safetensors
"""
