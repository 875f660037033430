"""researchmm/TracKit e351e5b, lib/core/function.py 9-80: ocean_train calls model.train() first (23), freezing or not."""

import torch


def ocean_train(train_loader, model, optimizer, epoch, cur_lr, cfg, writer_dict, logger, device):
    total = 0
    model.train()
    model = model.to(device)
    for iter, input in enumerate(train_loader):
        template, search = input[0].to(device), input[1].to(device)
        label, reg_label, reg_weight = (t.type(torch.FloatTensor).to(device) for t in input[2:5])
        cls_loss, _, reg_loss = model(template, search, label, reg_target=reg_label, reg_weight=reg_weight)
        loss = torch.mean(cls_loss + reg_loss)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item()
        if (iter + 1) % cfg.PRINT_FREQ == 0:
            mean = total / (iter + 1)
            text = "Epoch: [{0}][{1}/{2}] lr: {3:.7f}\t Batch Time: 0.1s \t Data Time:0.1s \t REG Loss:{4:.5f} \t Loss:{4:.5f}"
            logger.info(text.format(epoch, iter + 1, len(train_loader), cur_lr, mean))
        writer_dict["writer"].add_scalar("train_loss", loss.item(), writer_dict["train_global_steps"])
    return model, writer_dict
