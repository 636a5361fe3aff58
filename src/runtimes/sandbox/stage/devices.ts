/**
 * /dev of a VM whose stage has the rights to make devices: the harmless ones, and net/tun, which makes interfaces in the
 * VM's own network namespace only.
 */
import { spawnSync } from 'node:child_process'
import { chmodSync, chownSync, mkdirSync } from 'node:fs'
import { join } from 'node:path'
import { must } from '../../../sys/errno.ts'
import { MS_NOSUID, mknodChar, mount } from '../../../sys/mount.ts'

/** Mount and fill it; everything belongs to `owner`, the VM's root. */
export function devices(dir: string, owner: number): void {
  must('dev', mount('dev', dir, 'tmpfs', MS_NOSUID, 'mode=0755,size=1m'))
  const own = (p: string) => chownSync(p, owner, owner)
  own(dir)
  const nodes: readonly [string, number, number][] = [
    ['null', 1, 3],
    ['zero', 1, 5],
    ['full', 1, 7],
    ['random', 1, 8],
    ['urandom', 1, 9],
    ['tty', 5, 0],
    ['net/tun', 10, 200],
  ]
  for (const d of ['net', 'pts', 'shm', 'mqueue']) {
    mkdirSync(join(dir, d))
    own(join(dir, d))
  }
  for (const [name, major, minor] of nodes) {
    must(`mknod ${name}`, mknodChar(join(dir, name), 0o666, major, minor))
    chmodSync(join(dir, name), 0o666)
    own(join(dir, name))
  }
  const r = spawnSync(
    'sh',
    ['-c', 'ln -s /proc/self/fd fd; ln -s fd/0 stdin; ln -s fd/1 stdout; ln -s fd/2 stderr; ln -s pts/ptmx ptmx'],
    { cwd: dir },
  )
  must('links of dev', r.status === 0 ? 0 : -1)
}
