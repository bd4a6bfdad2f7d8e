#include "sd.h"
#define W __attribute__((weak))
W void sd_ep_changed(struct sock *s) { (void)s; }
W void sd_ep_fd_closed(struct sock *s, int fd) { (void)s; (void)fd; }
W SD_CALL(sd_epoll_ctl) { (void)f; (void)t; return SD_PASS; }
W SD_CALL(sd_epoll_wait) { (void)f; (void)t; return SD_PASS; }
W SD_CALL(sd_epoll_pwait) { (void)f; (void)t; return SD_PASS; }
W SD_CALL(sd_epoll_pwait2) { (void)f; (void)t; return SD_PASS; }
W bool sd_ep_peek(void *ep); W bool sd_ep_peek(void *ep) { (void)ep; return false; }
W bool sd_ep_park(void *ep); W bool sd_ep_park(void *ep) { (void)ep; return false; }
