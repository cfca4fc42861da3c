"""Sets of settings that --preset gives: name -> settings that differ from those of config.py."""

PUBLISHED = {"prediction": "eps", "label_at_sampling": "none", "latent_scaling": False,
             "aae_output_norm": True, "samples_per_scan": 1, "sampler": "ddpm", "precision": "fp32", "validation_steps": 50,
             "latent_channels": 1, "aae_block_norm": True, "aae_lr_decay": False, "time_shift": 1.0, "image_loss": 0.0,
             "conditioning": "input", "label_predictor": "linear", "label_in_training": "true"}

# Small enough for two CPU cores and a few minutes; every choice was made on the validation list.
DEMO = {"data_dir": "data/phantom", "num_workers": 0,
        "phantom_subjects": (80, 10, 20), "phantom_voxel": 4, "phantom_link": 0.6,
        "image_size": (45, 54, 45), "crop_start": (2, 4, 2), "volume_size": (40, 48, 40), "crop_jitter": 1,
        "aae_channels": (8, 16), "aae_norm_groups": 8, "disc_channels": (8, 16, 32), "aae_lr": 1e-3, "aae_epochs": 20,
        "unet_channels": 16, "unet_mults": (1, 2, 2), "unet_res_blocks": 1, "unet_norm_groups": 8, "ldm_lr": 1e-3, "ldm_epochs": 16,
        "label_in_training": "suvr", "label_at_sampling": "matched", "ema_decay": 0.99, "ema_start": 100, "validation_every": 4,
        "regression_channels": 8}

# A phantom cohort large enough to tell repairs of the method apart (docs/study.md); choices as in the demo.
BENCHMARK = DEMO | {"exp": "phantom_benchmark",           # result/benchmark is that of benchmark.py
                    "data_dir": "data/benchmark", "phantom_subjects": (160, 60, 80), "phantom_seed": 1000,
                    "ldm_epochs": 12}

PRESETS = {"paper": {}, "demo": DEMO, "benchmark": BENCHMARK, "published": PUBLISHED}
