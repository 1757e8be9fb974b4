"""The guest's image. ``build`` makes it from Debian's packages, with ``debian`` (root and kernel
package), ``kernel``, ``modules``, ``initramfs`` and ``commands``. ``store`` finds it and checks it.
"""
