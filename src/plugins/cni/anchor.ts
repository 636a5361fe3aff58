/**
 * A name for a VM's network namespace that lasts from ADD to DEL.
 *
 * /proc/PID/ns/net is gone with the VM, and then names whoever has the pid; plugins need the namespace at DEL to take away what
 * belongs to its addresses (masquerading). So the namespace is bind-mounted on a file, as `ip netns` and container engines do.
 * All synchronous: mounts are made by this thread, in the mount namespace that the plugins are started in.
 */
import { closeSync, existsSync, mkdirSync, openSync, rmSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { must } from '../../sys/errno.ts'
import { detachMount, MS_BIND, mount } from '../../sys/mount.ts'

export class Anchors {
  readonly #dir: string

  constructor(runDir: string) {
    this.#dir = join(runDir, 'netns')
  }

  path = (id: string): string => join(this.#dir, encodeURIComponent(id))

  /** Hold the namespace at `netns`. Throws SysError when there is none. */
  hold(id: string, netns: string): string {
    const path = this.path(id)
    this.release(id)
    mkdirSync(this.#dir, { recursive: true, mode: 0o700 })
    closeSync(openSync(path, 'w', 0o600))
    const r = mount(netns, path, null, MS_BIND)
    if (r < 0) rmSync(path, { force: true })
    must(`bind mount of ${netns}`, r)
    return path
  }

  /** Is it (still) a namespace? After a reboot it is not. */
  held(id: string): boolean {
    const s = statSync(this.path(id), { throwIfNoEntry: false })
    // A namespace's file lies on nsfs, and not on what the directory lies on.
    return s !== undefined && s.dev !== statSync(this.#dir).dev
  }

  /** Is the namespace at `netns` the one that is held? */
  names(id: string, netns: string): boolean {
    const [a, b] = [this.path(id), netns].map((p) => statSync(p, { throwIfNoEntry: false }))
    return a !== undefined && b !== undefined && a.dev === b.dev && a.ino === b.ino && this.held(id)
  }

  release(id: string): void {
    const path = this.path(id)
    if (!existsSync(path)) return
    while (this.held(id)) if (detachMount(path) < 0) break
    rmSync(path, { force: true })
  }
}
