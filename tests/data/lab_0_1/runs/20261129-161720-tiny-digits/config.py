default_scope = 'mmpretrain'
custom_imports = {'imports': ['bblab.pretraining.adapter'], 'allow_failed_imports': False}
work_dir = '/home/designer/lab/runs/20261129-161720-tiny-digits'
model = {'type': 'ImageClassifier',
 'backbone': {'type': 'BblabNet',
              'spec': {'head': ['classifier', 10, 1, []],
                       'input': [3, 48, 48],
                       'stages': [['stem', [['conv', 8, 2, []]]],
                                  ['s4', [['mobileone', 16, 2, [['branches', 2]]]]],
                                  ['s8', [['mbconv', 24, 2, [['width', 32]]]]],
                                  ['s16', [['mobileone', 32, 2, [['branches', 2]]]]]],
                       'taps': ['s16'],
                       'tracker': [127, 255, None]},
              'name': 'tiny',
              'num_classes': 10,
              'lab': None,
              'freeze': None,
              'weights': None,
              'compiled': False,
              'channels_last': False},
 'head': {'type': 'ClsHead', 'loss': {'type': 'CrossEntropyLoss', 'use_sigmoid': False}}}
data_preprocessor = {'num_classes': 10,
 'mean': [123.675, 116.28, 103.53],
 'std': [58.395, 57.12, 57.375],
 'to_rgb': True,
 'to_onehot': False}
train_dataloader = {'num_workers': 0,
 'persistent_workers': False,
 'pin_memory': False,
 'collate_fn': {'type': 'default_collate'},
 'worker_init_fn': {'type': 'bblab_worker'},
 'batch_size': 64,
 'drop_last': True,
 'sampler': {'type': 'ResumableSampler', 'shuffle': True, 'repeats': 1},
 'dataset': {'type': 'CustomDataset',
             'data_root': '/home/designer/cache/digits-48px-v1',
             'data_prefix': 'train',
             'ann_file': '',
             'classes': '/home/designer/lab/runs/20261129-161720-tiny-digits/classes.txt',
             'pipeline': [{'type': 'SeededSample'},
                          {'type': 'LoadRandomCropFast',
                           'px': 48,
                           'scale': [0.7, 1.0],
                           'ratio': [0.9, 1.1111],
                           'flip': 0.0,
                           'interpolation': 'bilinear',
                           'on_bad': 'skip',
                           'bad_list': '/home/designer/lab/runs/20261129-161720-tiny-digits/bad_images.txt'},
                          {'type': 'PackInputs'}]}}
val_dataloader = {'num_workers': 0,
 'persistent_workers': False,
 'pin_memory': False,
 'collate_fn': {'type': 'default_collate'},
 'worker_init_fn': {'type': 'bblab_worker'},
 'batch_size': 64,
 'sampler': {'type': 'DefaultSampler', 'shuffle': False},
 'dataset': {'type': 'CustomDataset',
             'data_root': '/home/designer/cache/digits-48px-v1',
             'data_prefix': 'val',
             'ann_file': '',
             'classes': '/home/designer/lab/runs/20261129-161720-tiny-digits/classes.txt',
             'pipeline': [{'type': 'LoadCenterCropFast',
                           'edge': 48,
                           'px': 48,
                           'interpolation': 'bilinear',
                           'on_bad': 'blank',
                           'bad_list': '/home/designer/lab/runs/20261129-161720-tiny-digits/bad_images.txt'},
                          {'type': 'PackInputs'}]}}
train_cfg = {'type': 'EpochBasedTrainLoop', 'max_epochs': 2, 'val_interval': 1}
val_cfg = {'type': 'ValLoop'}
val_evaluator = {'type': 'Accuracy', 'topk': [1, 5]}
optim_wrapper = {'type': 'OptimWrapper',
 'constructor': 'TwoGroups',
 'paramwise_cfg': {'decays_norms': False, 'decays_biases': True},
 'optimizer': {'type': 'SGD', 'momentum': 0.9, 'nesterov': False, 'lr': 0.1, 'weight_decay': 0.0001},
 'accumulative_counts': 1}
param_scheduler = [{'type': 'LinearLR', 'start_factor': 0.01, 'by_epoch': False, 'begin': 0, 'end': 4},
 {'type': 'CosineAnnealingLR', 'T_max': 40, 'eta_min_ratio': 0.0, 'by_epoch': False, 'begin': 4, 'end': 44}]
default_hooks = {'checkpoint': None, 'logger': {'type': 'LoggerHook', 'interval': 50}}
custom_hooks = [{'type': 'EpochSeed', 'seed': 0},
 {'type': 'StopOnBadLoss', 'interval': 1},
 {'type': 'Record',
  'ramp': [[0, 48]],
  'bad_list': '/home/designer/lab/runs/20261129-161720-tiny-digits/bad_images.txt'},
 {'type': 'SurvivingCheckpoint', 'keep': 2, 'save_minutes': 10.0}]
randomness = {'seed': 0, 'deterministic': False}
env_cfg = {'cudnn_benchmark': False,
 'mp_cfg': {'mp_start_method': 'fork', 'opencv_num_threads': 0},
 'dist_cfg': {'backend': 'gloo'}}
model_wrapper_cfg = None
visualizer = {'type': 'UniversalVisualizer', 'vis_backends': [{'type': 'LocalVisBackend'}]}
log_processor = {'by_epoch': True}
log_level = 'INFO'
launcher = 'none'
load_from = None
resume = False
