/**
 * The images' part of the API (src/api/contract.ts): src/images does the work, here VMs have the names people know.
 */
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import type { z } from 'zod'
import { buildImage, type Image, importImage } from '../api/contract.ts'
import { routes } from '../api/routes.ts'
import type { ImageInfo, Images } from '../images/index.ts'
import { Cancelled } from './bounded.ts'
import type { Progress } from './control.ts'
import type { Store } from './store.ts'

export interface ImageRouteParts {
  readonly images: Images
  readonly store: Store
  readonly parse: <T>(schema: z.ZodType<T>, value: unknown) => T
  /** Answers with a line for each step and one at the end; a client that leaves cancels. */
  readonly progress: (
    reply: FastifyReply,
    run: (say: Progress, cancel: AbortSignal) => Promise<{ image: Image }>,
  ) => Promise<FastifyReply>
}

type Named = FastifyRequest<{ Params: { name: string } }>

export function imageRoutes(app: FastifyInstance, { images, store, parse, progress }: ImageRouteParts): void {
  const one = `${routes.images}/:name`
  // A store may be shared: a VM that is another daemon's keeps its id.
  const vmName = (id: string): string => store.vm(id)?.name ?? id
  const view = (i: ImageInfo): Image => ({ ...i, packages: [...i.packages], vms: i.vms.map(vmName) })
  const done = async (what: string, cancel: AbortSignal, made: Promise<ImageInfo>): Promise<{ image: Image }> => {
    try {
      return { image: view(await made) }
    } catch (e) {
      throw cancel.aborted ? new Cancelled(what) : e
    }
  }
  app.get(routes.images, async () => images.list().map(view))
  app.get(one, async (req: Named) => view(images.info(req.params.name)))
  app.post(routes.images, (req, reply) => {
    const body = parse(importImage, req.body)
    return progress(reply, (say, cancel) =>
      done(
        `importing ${body.name}`,
        cancel,
        images.import(body, (text) => say('step', text), cancel),
      ),
    )
  })
  app.post(`${one}/build`, (req: Named, reply) => {
    const { force } = parse(buildImage, req.body ?? {})
    const { name } = req.params
    return progress(reply, (say, cancel) =>
      done(
        `building ${name}`,
        cancel,
        images.build(name, (text) => say('step', text), cancel, force),
      ),
    )
  })
  app.delete(one, async (req: Named) => {
    await images.remove(req.params.name, vmName)
    return {}
  })
}
