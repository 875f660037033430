"""MegviiDetection/video_analyst f4d1bcc, backbone_base.py 4 and utils/misc.py 16-41: a dict that registers by class name."""


class Registry(dict):
    def register(self, module):
        self[module.__name__] = module
        return module


TRACK_BACKBONES = Registry()
