"""How a file system without locks answers a request for one."""

import errno

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EPERM)  # values of OSError.errno
