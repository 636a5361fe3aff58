/**
 * Giving up privileges, and limits: setresuid(2), setgroups(2), prctl(2), getrlimit(2).
 *
 * Theory. glibc's setres[ug]id reach every thread of the process (nptl(7)), and leaving uid 0 clears the permitted, effective and
 * ambient capabilities of each (capabilities(7)). PR_SET_NO_NEW_PRIVS and the bounding set reach only the calling thread and those
 * made later, so they are a second wall here, not the first.
 */
import { declare, result, Scratch } from './libc.ts'

const c = {
  setgroups: declare<(n: number, addr: number) => number>('int setgroups(size_t, uintptr_t)'),
  setresgid: declare<(r: number, e: number, s: number) => number>(
    'int setresgid(unsigned int, unsigned int, unsigned int)',
  ),
  setresuid: declare<(r: number, e: number, s: number) => number>(
    'int setresuid(unsigned int, unsigned int, unsigned int)',
  ),
  prctl: declare<(op: number, a: number, b: number, c: number, d: number) => number>(
    'int prctl(int, unsigned long, unsigned long, unsigned long, unsigned long)',
  ),
  capset: declare<(header: number, data: number) => number>('int capset(uintptr_t, uintptr_t)'),
  getrlimit: declare<(what: number, addr: number) => number>('int getrlimit(int, uintptr_t)'),
  setrlimit: declare<(what: number, addr: number) => number>('int setrlimit(int, uintptr_t)'),
}
// linux/prctl.h
const PR_SET_KEEPCAPS = 8
const PR_SET_DUMPABLE = 4
const PR_CAPBSET_DROP = 24
const PR_SET_NO_NEW_PRIVS = 38
// linux/capability.h
const CAPABILITY_VERSION_3 = 0x20080522
const CAP_LAST = 63
const RLIMIT_NOFILE = 7
const RLIM_INFINITY = 2 ** 64
const scratch = new Scratch(64)

/** Become `uid` and `gid` for good, in every thread, without supplementary groups. 0 or −errno. Needs CAP_SETUID, CAP_SETGID. */
export function become(uid: number, gid: number): number {
  let r = result(c.prctl(PR_SET_KEEPCAPS, 0, 0, 0, 0))
  if (r >= 0) r = result(c.setgroups(0, 0))
  if (r >= 0) r = result(c.setresgid(gid, gid, gid))
  if (r >= 0) r = result(c.setresuid(uid, uid, uid))
  return r
}

/** Drop what the capability bounding set still allows (this thread; needs CAP_SETPCAP, else it is left as it is). */
export function dropBoundingSet(): void {
  for (let cap = 0; cap <= CAP_LAST; cap++) if (c.prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) < 0) return
}

/** No capability in any set of this thread. */
export function dropCapabilities(): number {
  scratch.bytes.fill(0)
  scratch.setI32(0, CAPABILITY_VERSION_3)
  return result(c.capset(scratch.address, scratch.address + 8))
}

/** No execve gains a privilege any more (this thread and its children). */
export function noNewPrivileges(): number {
  return result(c.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
}

/** Nobody of the same uid may attach to this process or read its memory. */
export function undumpable(): number {
  return result(c.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0))
}

/** Raise the limit of open files to the hard one (at most `most`) and return it. */
export function raiseOpenFiles(most: number): number {
  const r = result(c.getrlimit(RLIMIT_NOFILE, scratch.address))
  if (r < 0) return r
  const soft = scratch.word(0)
  const hard = scratch.word(8)
  const want = Math.min(hard >= RLIM_INFINITY ? most : hard, most)
  if (soft >= want) return Math.min(soft, most)
  scratch.setWord(0, want)
  return c.setrlimit(RLIMIT_NOFILE, scratch.address) < 0 ? soft : want
}
