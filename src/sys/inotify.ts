/** inotify(7): a descriptor that becomes readable when a watched file or directory changes. */
import { declare, result } from './libc.ts'

const c = {
  init: declare<(flags: number) => number>('int inotify_init1(int)'),
  add: declare<(fd: number, path: string, mask: number) => number>(
    'int inotify_add_watch(int, const char *, unsigned int)',
  ),
}
// linux/inotify.h
export const IN_CLOSE_WRITE = 0x8
export const IN_MOVED_TO = 0x80
export const IN_CREATE = 0x100
export const IN_DELETE = 0x200
const FLAGS = 0o4000 | 0o2000000

/** A non-blocking inotify descriptor. */
export function inotify(): number {
  return result(c.init(FLAGS))
}

/** A watch descriptor, or −errno. */
export function addWatch(fd: number, path: string, mask: number): number {
  return result(c.add(fd, path, mask))
}
