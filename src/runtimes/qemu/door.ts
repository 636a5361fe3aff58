/**
 * The way of a QEMU that gave up root's rights to the socket of its switch, which lies in a directory that is root's alone: a second name
 * (a hard link) of that socket in the VM's run directory, owned by the user that QEMU became.
 *
 * QEMU opens the path for each datagram, or each time it connects again. When the backend binds a new socket, the second name leads to the
 * old one, which it also keeps from being forgotten, so that a new one never has its inode number: `keep` notices and makes the name anew.
 * Invariant: the run directory stays root's; a QEMU that was taken over can put nothing in the way of who connects there.
 */
import { chmodSync, chownSync, linkSync, renameSync, rmSync, statSync } from 'node:fs'
import { dirname, join } from 'node:path'
import type { Nic } from '../../plugins/contract.ts'

const NAME = 'switch'

/** The name of the socket for that user, relative to `run`; undefined when there is no such way. */
export function openDoor(nic: Nic, run: string, uid: number): string | undefined {
  if (!('path' in nic)) return undefined
  try {
    chmodSync(dirname(run), 0o711)
    chmodSync(run, 0o711)
    link(nic.path, run, uid)
    return NAME
  } catch {
    // Another file system, or none that links sockets.
    return undefined
  }
}

/** Make it lead to the socket that is there now. Cheap when it does already; never throws. */
export function keepDoor(nic: Nic, run: string, uid: number): void {
  if (!('path' in nic)) return
  const now = statSync(nic.path, { throwIfNoEntry: false })
  const led = statSync(join(run, NAME), { throwIfNoEntry: false })
  if (now === undefined || led === undefined || now.ino === led.ino) return
  try {
    link(nic.path, run, uid)
  } catch {
    // It went again; the next look is a second away.
  }
}

function link(path: string, run: string, uid: number): void {
  const fresh = join(run, `${NAME}.new`)
  rmSync(fresh, { force: true })
  linkSync(path, fresh)
  chownSync(fresh, uid, uid)
  renameSync(fresh, join(run, NAME))
}
