"""What a file system says that has no locks, by which two writers could be kept apart."""

import errno

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EPERM)  # of an OSError
